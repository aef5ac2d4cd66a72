from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("policy", "0008_product_deletion")]

    operations = [
        migrations.AlterModelOptions(
            "product",
            options={
                "default_permissions": ("view",),
                "ordering": ("slug",),
                "permissions": [
                    ("operate_product", "Can register products, edit policies, issue and revoke keys"),
                    ("suspend_product", "Can suspend and resume products"),
                    ("delete_product", "Can delete products without engines"),
                ],
            },
        ),
    ]
